"""Files to tensors and back. Every byte is distrusted until checked; nothing is read before it is asked for.

resolve.py      a model name -> files on this machine
gguf.py         GGUF files and split sets (header.py: the header, metadata.py: typed reads of its keys)
safetensors.py  safetensors files and folders
tensor.py       a mapped file, a tensor in it: whole or some rows (types.py: stored types, dequant.py: to float)
load.py         a location -> config and tensors under one set of names (names.py)
write.py        tensors -> a GGUF file (export.py: a whole checkpoint)
"""
