"""The report: what runs have come to, as a page that holds everything it needs, or as Markdown."""
