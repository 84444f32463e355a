"""The errors of finding and fetching model files. Each message says what was tried and what to do now."""

from __future__ import annotations

from inference_stack.core.errors import NOT_FOUND, SERVER_ERROR, ErrorInfo, InferenceError


def files_not_found(message: str) -> InferenceError:
    """There are no such model files (404)."""
    return InferenceError(ErrorInfo(message=message, type=NOT_FOUND, code="model_not_found", param="model", status=404))


def download_failed(message: str) -> InferenceError:
    """The files exist elsewhere but could not be brought here, or arrived damaged (503)."""
    return InferenceError(
        ErrorInfo(message=message, type=SERVER_ERROR, code="model_download_failed", param="model", status=503)
    )


def unreadable(message: str) -> InferenceError:
    """The system could not read a file that is there (500)."""
    return InferenceError(
        ErrorInfo(message=message, type=SERVER_ERROR, code="model_unreadable", param="model", status=500)
    )
