// Figures of runs in words.

import { h } from "selfsup/dom.js";

/** The address of a run's page. */
export const place = (name) => `#/run/${name.split("/").map(encodeURIComponent).join("/")}`;

/** How long ago a moment was, in seconds since 1970. */
export function ago(moment) {
  if (!moment) return "–";
  const minutes = (Date.now() / 1000 - moment) / 60;
  if (minutes < 1) return "now";
  if (minutes < 60) return `${Math.floor(minutes)} min ago`;
  return minutes < 60 * 48 ? `${Math.floor(minutes / 60)} h ago` : `${Math.floor(minutes / 60 / 24)} days ago`;
}

/** Whether a run is running, and how far it has come. */
export function state(row) {
  const share = row.steps ? Math.min(1, row.step / row.steps) : 0;
  const text = row.state === "running" ? `running, ${Math.floor(share * 100)} %` : row.state;
  return h("span", { class: `state ${row.state}` }, row.problem ? "damaged" : text);
}
