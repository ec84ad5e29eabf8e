"""Torch models in, IR out, and back.

`capture` makes an exported program of a model, `import_fx` makes IR of it, `export_fx` makes a
graph module of IR; `linears` takes the linear layers of a model one by one.
"""
