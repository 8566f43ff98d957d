"""What answers over HTTP on the user's own machine: the studio and the API, behind one guard."""
