"""Plug-ins for primecli. The entry points in pyproject.toml name them; docs/plugins.md says what each is given."""
