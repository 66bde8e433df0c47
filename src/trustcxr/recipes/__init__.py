"""Define studies and runs as recipes read from YAML."""
