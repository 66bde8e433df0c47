"""A folder of X-rays read whole: what is there, what is wrong, what leaks, what gives the class away."""
