"""The command line, the configuration, and the phases of a run."""
