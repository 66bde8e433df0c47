"""Images and labels: folders -> manifest -> pixel store -> batches."""
