"""Events of usage: how they are read and judged, what they cost, which windows they add to."""
