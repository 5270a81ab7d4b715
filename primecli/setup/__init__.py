"""Before the first run: doctor, the configuration file, the starter."""
