"""Which model the demo's agent asks: by the keys that are set."""

import os
from typing import Any

GEMINI_MODEL = "litellm/gemini/gemini-3.8-flash"


def choose_model(offline: bool) -> tuple[str | None, str]:
    """The model's name, None for the SDK's default, and in words which mode that is."""
    openai = os.environ.get("OPENAI_API_KEY")
    google = os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
    named = os.environ.get("MODEL") or (None if openai else GEMINI_MODEL)
    if offline:
        return "offline agent", "offline"
    if not (openai or google or os.environ.get("MODEL")):
        return "offline agent", "offline, as neither OPENAI_API_KEY nor GEMINI_API_KEY is set"
    return named, "live"


def model_of(name: str | None, mode: str) -> Any:
    """What an agent takes as its model."""
    from agents import set_tracing_disabled

    if not os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        set_tracing_disabled(True)  # traces go to OpenAI, with OpenAI's key
    if mode != "live":
        from offline.model import OfflineModel

        return OfflineModel()
    if name and name.startswith("litellm/"):
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a price list when imported
        import litellm

        litellm.suppress_debug_info = True  # its errors are said in a sentence, without advertisement
    return name
