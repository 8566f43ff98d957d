"""The other side of a comparison, one small program each: it prints one line of JSON."""
