"""Models made smaller, and checked: a source becomes a GGUF file of coarser weights, measured before it has its name.

    groups.py        tensors in groups that are treated alike, and the rules of each format
    encode.py        rows of a source -> bytes of the new file, on several threads
    quality.py       what is measured: divergence and agreement        gate.py    source and result, run and compared
    sensitivity.py   each group alone made coarser                     choice.py  the cheapest assignment within a limit
    quantize.py      all of it, in order

Nothing is imported here: ``quality.py`` also runs in interpreters that have no torch.
"""
