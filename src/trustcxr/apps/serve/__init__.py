"""The page that looks at one film, and its API: a run's answers over HTTP. Nothing that is sent is kept."""
