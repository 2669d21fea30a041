"""How a fact is recalled: heads that bring the topic to the last token, and late blocks that hold the answer down."""
