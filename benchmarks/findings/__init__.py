"""What writes results/ and the README's table: each figure from a table, with its interval."""
