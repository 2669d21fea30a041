"""Claims that no model here can be held against, with the reason."""

UNTESTED = (
    (
        "Gu et al. 2025",
        "Sigmoid attention without normalisation has no sink",
        "softmax 45.11 %, sigmoid 2.46 % at 1B [T]",
        "needs training; in small decoders: [sink_emergence](sink_emergence.md)",
    ),
    (
        "Wu et al. 2025",
        "A chat model has the retrieval heads of its base model",
        "Qwen1.5-14B base and chat: r = 0.893 [calc]",
        "only one checkpoint of each model is at hand",
    ),
    (
        "Barbero et al. 2025",
        "Training with longer contexts grows more sinks",
        "rises from 128 to 2048 tokens (figure) [T]",
        "needs training",
    ),
    (
        "Yu et al. 2024 (ACT)",
        "Shrinking later sinks in chosen heads raises accuracy",
        "up to +7.30 % for Llama-30B [abstract]",
        "needs labelled tasks that a model of 135 M parameters can do",
    ),
    (
        "Han et al. 2026 (ZeroTuning)",
        "Scaling attention to the first token raises accuracy",
        "Llama-3.1-8B, 7 classification tasks: 59.59 -> 71.44 % [2nd]",
        "the same",
    ),
    (
        "Xiao et al. 2025 (DuoAttention)",
        "With gates learned by gradient, half of the KV heads may stream",
        "needle tests as with the full cache up to 1048K tokens [paper]",
        "learning the gates takes hours on a CPU at this size; `streaming_split` does it on small models",
    ),
)
