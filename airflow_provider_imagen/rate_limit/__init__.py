"""How fast requests start: a CUBIC controller, and a pacer that makes threads wait for it."""
