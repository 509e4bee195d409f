"""An adapter that outlives its base: what it does is recorded while the base is there, and carried to the next one."""
