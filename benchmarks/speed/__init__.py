"""What a machine is timed by: each prints figures of the machine that it runs on, and what they should be."""
