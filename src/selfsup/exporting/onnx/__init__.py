"""To ONNX: one file whose graph computes what the model does, for batches and lengths of any size.

    of images     pixels  →  features, hidden_states                               see `images`
    of texts      input_ids, attention_mask  →  last_hidden_state, sentence_embedding    see `texts`
    a decoder     input_ids, attention_mask, position_ids, past_key_values.N.key and .value
                  →  logits, present.N.key and .value                              see `decoders`

The last two have the names that optimum gives to inputs and outputs.
"""

from __future__ import annotations

from pathlib import Path

from selfsup.errors import UserError
from selfsup.exporting import Written, open_image_model
from selfsup.exporting.onnx import decoders, images, texts
from selfsup.exporting.onnx.graphs import Exportable, open_session
from selfsup.files import new_file
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load, model_class
from selfsup.models.directories import find_model


def write(source: Path, path: Path) -> Written:
    """Write the model of `source` to the file `path`. Raises UserError where it holds two towers, a network of another
    library's, or one that has no room in a file, or what writes ONNX is not installed."""
    model = exportable(source)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"Export to ONNX needs onnx and onnxscript ({error}); pip install onnx onnxscript.") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        model.save(temporary)
        session = open_session(temporary)
        difference = None if session is None else model.compare(session)
    return f"onnxruntime.InferenceSession({str(path)!r}).run(None, {model.given})", difference


def exportable(source: Path) -> Exportable:
    """The model of a run or directory, by its kind."""
    kind = model_class(find_model(source))
    if kind not in (LanguageModel, EncoderModel):
        return images.ImageGraph(open_image_model(source, "onnx"))
    model = load(source)
    if isinstance(model, LanguageModel):
        return decoders.DecoderGraph(model)
    assert isinstance(model, EncoderModel)
    return texts.TextGraph(model)
