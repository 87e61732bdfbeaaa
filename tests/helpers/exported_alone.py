"""Runs exported files on an image, in a process where branchprune cannot be imported.

Its arguments are a tensor of torch.save and the files. It prints the outputs as JSON. What runs
ONNX and OpenVINO files imports neither PyTorch.
"""

import json
import sys

from refusing import refuse


def run(file, image):
    if file.endswith(".pt2"):
        import torch

        return torch.export.load(file).module()(image).tolist()
    if file.endswith(".pte"):
        from executorch.runtime import Runtime

        return Runtime.get().load_program(file).load_method("forward").execute([image])[0].tolist()
    if file.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (name,) = [each.name for each in session.get_inputs()]
        return session.run(None, {name: image.numpy()})[0].tolist()
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(file, "CPU", exact)([image.numpy()])[0].tolist()


if __name__ == "__main__":
    import torch

    refuse(["branchprune"])
    try:
        import branchprune
    except ImportError:
        image, *files = sys.argv[1:]
        print(json.dumps([run(file, torch.load(image)) for file in files]))
    else:
        raise AssertionError(f"{branchprune} could be imported")
