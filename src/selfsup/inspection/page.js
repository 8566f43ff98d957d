const positions = [...document.querySelectorAll(".window .position")];
const readout = document.createElement("div");
const frame = document.createElement("div");
frame.id = "readout";
frame.setAttribute("aria-live", "polite");
frame.append(readout);
document.body.append(frame);
let pinned = null;

function sees(number) {
  const row = document.querySelector('.sight [data-position="' + number + '"]');
  return (row?.dataset.sees ?? "").split(" ").filter(Boolean).map(run => run.split("-").map(Number))
    .flatMap(([first, last]) => positions.slice(first, last + 1));
}

function near(seen, position) {
  const place = seen.indexOf(position), first = Math.max(0, Math.min(place - 20, seen.length - 40));
  const shown = seen.slice(first, first + 40).map(element => element.querySelector(".input").cloneNode(true));
  return [...(first ? ["… "] : []), ...shown, ...(first + 40 < seen.length ? [" …"] : [])];
}

function look(number) {
  document.querySelectorAll(".now, .sees").forEach(element => element.classList.remove("now", "sees"));
  document.body.classList.toggle("looking", number !== null);
  if (number === null) return;
  document.querySelectorAll('[data-position="' + number + '"]').forEach(element => element.classList.add("now"));
  const position = positions[number], seen = sees(number);
  seen.forEach(element => element.classList.add("sees"));
  const target = position.querySelector(".target");
  const wanted = target ? [" predict ", target.cloneNode(true)] : [];
  readout.replaceChildren("given ", ...near(seen, position), ...wanted, " ", position.dataset.note ?? "");
}

function numberAt(event) {
  const element = event.target.closest("[data-position]");
  return element ? Number(element.dataset.position) : null;
}

document.addEventListener("pointerover", event => event.pointerType === "mouse" && look(numberAt(event) ?? pinned));
document.addEventListener("focusin", event => look(numberAt(event) ?? pinned));
document.addEventListener("click", event => {
  const number = numberAt(event);
  pinned = number === pinned ? null : number;
  look(pinned);
});

document.querySelectorAll(".matrix").forEach(figure => {
  const { values, roles, said, meaning, place } = JSON.parse(figure.dataset.cells);
  const image = figure.querySelector("img"), readout = figure.querySelector(".readout");
  const found = (at, start, span, margin, count) => Math.floor(((at - start) / span - margin) / (1 - margin) * count);
  image.addEventListener("pointermove", event => {
    const box = image.getBoundingClientRect();
    const row = found(event.clientY, box.top, box.height, place[1], values.length);
    const column = found(event.clientX, box.left, box.width, place[0], values[0].length);
    if (values[row]?.[column] === undefined) return;
    const what = meaning[roles[row][column]], names = [said[0][row] ?? row + 1, said[1][column] ?? column + 1];
    readout.textContent = names.join(" and ") + ": " + values[row][column].toFixed(3) + (what ? ", " + what : "");
  });
});
