"""What administrators tell nodes survives the wire."""

import pytest

from inference_stack.wire.grpc.ends import GatewayEnd, NodeEnd
from inference_stack.wire.messages import LoadModel, UnloadModel


@pytest.mark.parametrize("message", [LoadModel(model="/m/x.gguf", name="x"), UnloadModel(name="x")])
def test_changes_of_models_survive(message: LoadModel | UnloadModel) -> None:
    (received,) = NodeEnd().decode(GatewayEnd().encode(message))
    assert received == message
