"""How a fact is recalled: heads that bring the topic to the last token, and late layers that hold the answer down."""
