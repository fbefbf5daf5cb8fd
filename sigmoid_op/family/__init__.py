"""The ops built on σ, each in a file of its own; :mod:`.fused` has what their Functions share."""
