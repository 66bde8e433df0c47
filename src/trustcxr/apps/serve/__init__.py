"""The page that looks at one image, and its API: a run's answers over HTTP. Nothing that is sent is kept."""
