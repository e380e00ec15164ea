"""Do the exported forms of a net predict the same? File, ONNX and a served MLflow model.

After ``kedro run --pipelines defend`` (or ``export``): the newest net of the project's own
store labels the images of a folder three ways, the last by HTTP from ``mlflow models serve``,
started here.

    python benchmarks/agreement.py FOLDER [--images 1000] [--port 5013] [--json]

``ratio`` is the share of images with the same class in all three; exit code 1 if it is not 1,
a logit differs by more than 1e-3, or a reject flag differs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime

from counterdoor.io import HardenedDataset
from counterdoor.sources.decoding import read_images
from counterdoor.sources.image_folder import files_below
from counterdoor.store import connect
from counterdoor.tracking import commit_tags, hardware

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 250
TOLERANCE = 1e-3


def served(model: str, images_nchw: np.ndarray, port: int) -> np.ndarray:
    """What ``mlflow models serve`` answers, float32 (N, K)."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "-p", str(port)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{ROOT / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(
        [*command, "--env-manager", "local"], env=environment, start_new_session=True, **quiet
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None:
                    raise SystemExit("mlflow models serve has stopped") from None
                time.sleep(1)
        answers = []
        for start in range(0, len(images_nchw), CHUNK):
            body = json.dumps({"inputs": images_nchw[start : start + CHUNK].tolist()}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                body,
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as answer:
                answers += json.load(answer)["predictions"]
    finally:
        os.killpg(server.pid, 15)
        server.wait()
    return np.array(answers, np.float32)


def main() -> None:
    """Predict three ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--port", type=int, default=5013)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    mlflow = connect(ROOT)
    runs = mlflow.search_runs(order_by=["start_time DESC"], output_format="list")
    for run in runs:
        version = run.data.tags.get("kedro.run_id")
        found = list(ROOT.glob(f"data/06_models/**/hardened.safetensors/{version}/*.safetensors"))
        if found:
            break
    else:
        raise SystemExit("no run of this project has exported a net")
    hardened = HardenedDataset(filepath=str(found[0])).load()
    onnx = Path(str(found[0]).replace("hardened.safetensors", "hardened_onnx.onnx"))

    files = files_below(options.folder)
    rows = np.random.default_rng(0).permutation(len(files))[: options.images]
    items = [(str(files[row]), files[row], 0) for row in rows]
    images = read_images(items, len(items), hardened.form, on_corrupt="skip").images_nchw
    own, rejected = hardened.predict(images)
    session = onnxruntime.InferenceSession(onnx.read_bytes())
    by_onnx, flags = session.run(["logits", "reject"], {"images": images})
    by_server = served(f"runs:/{run.info.run_id}/hardened", images, options.port)
    agree = bool((flags == rejected).all())
    if hardened.reject_column:
        agree = agree and bool((by_server[:, -1] == rejected).all())
        by_server = by_server[:, :-1]
    same = (own.argmax(1) == by_onnx.argmax(1)) & (own.argmax(1) == by_server.argmax(1))
    apart = {
        name: float(np.abs(other - own).max())
        for name, other in (("onnx", by_onnx), ("served", by_server))
    }
    result = {
        "name": "agreement",
        "ratio": float(same.mean()),
        "values": {
            "images": len(images),
            "largest_difference_of_logits": apart,
            "rejected": int(rejected.sum()),
            "reject_flags_agree": agree,
        },
        "commit": commit_tags(ROOT).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{len(images)} images: the same class in all three for {result['ratio']:.2%}")
        print(f"logits differ by at most {apart}; {result['values']}")
    close = max(apart.values()) <= TOLERANCE
    sys.exit(0 if same.all() and agree and close else 1)


if __name__ == "__main__":
    main()
