"""GGUF files, as llama.cpp and Ollama users have them: what one holds, and the model it becomes."""

from sinklens.models.gguf.file import GgufFile, read_gguf_file
from sinklens.models.gguf.model import load_gguf

__all__ = ["GgufFile", "load_gguf", "read_gguf_file"]
