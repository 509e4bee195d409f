"""What can go wrong, as a tree. Every error a user can cause says what, where and what to do.

PocketgemError
├── InputError               the caller's input is bad: exit code 2, HTTP 4xx
│   ├── CheckpointError      a model file or folder is missing, damaged or not what it claims
│   │   ├── FormatError          bytes that are not valid GGUF / safetensors / JSON
│   │   ├── UnsupportedError     valid, but an architecture, type or feature we do not run
│   │   └── WeightsError         tensors missing, surplus or of the wrong shape
│   ├── TokenizerError       the vocabulary is damaged, or text that cannot become ids
│   ├── TemplateError        the chat template is missing, refuses the messages or breaks its limits
│   └── PromptError          empty or over-long prompt, bad sampling option
│       └── MediaError           an image, sound or video that cannot be read, is too large or not allowed
└── RunError                 the run itself failed: exit code 1, HTTP 5xx
    ├── BusyError                more requests wait than may, or the service is closing: try again, HTTP 503
    └── StalledError             a reader left too much of its answer unread
"""


class PocketgemError(Exception):
    """Root of every error raised on purpose by this package. ``str(e)`` is one clear line."""


class InputError(PocketgemError):
    """The caller's input is bad."""


class CheckpointError(InputError):
    """A model file or folder is missing, damaged or not what it claims to be."""


class FormatError(CheckpointError):
    """Bytes that are not a valid GGUF, safetensors or JSON file."""


class UnsupportedError(CheckpointError):
    """A valid file that asks for an architecture, type or feature this package does not run."""


class WeightsError(CheckpointError):
    """Tensors are missing, surplus or of the wrong shape."""


class TokenizerError(InputError):
    """The vocabulary is damaged, or the text cannot become ids."""


class TemplateError(InputError):
    """The chat template is missing, refuses the messages or breaks its limits."""


class PromptError(InputError):
    """An empty or over-long prompt, or a sampling option out of range."""


class MediaError(PromptError):
    """An image, a sound or a video that cannot be read, passes a limit or is of a kind that is not taken."""


class RunError(PocketgemError):
    """The run itself failed."""


class BusyError(RunError):
    """There is no room for the request now: too many wait, or the service is closing. It may be tried again."""


class StalledError(RunError):
    """Whoever asked for an answer stopped reading it, so it was ended."""
