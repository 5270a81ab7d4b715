"""Pure tensor functions: nothing here reads a file, loads a model or knows a configuration object.

Shapes: B responses, T tokens of the longest one, N tokens of all of them, V entries of the vocabulary, D hidden width.
`response_mask` (B, T) is True where a token is trained on.
"""
