"""Pure tensor functions: nothing here reads a file, loads a model or knows a configuration object.

Shapes: B responses, T tokens of the longest of them, N tokens of all of them, V words, D hidden width.
`response_mask` (B, T) is True where a token is trained on.
"""
