#!/usr/bin/env python3
"""The peer of `bench_servers.py`: the smallest `kserve.Model` that serves a joblib file.

python kserve_iris.py --model_name iris --model_dir DIR --http_port 8080 --enable_grpc=false
"""

import argparse
from pathlib import Path

import joblib
from kserve import Model, ModelServer, model_server
from kserve.utils.utils import get_predict_input, get_predict_response


class Iris(Model):
    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self.folder = Path(folder)

    def load(self) -> bool:
        self.model = joblib.load(self.folder / "model.joblib")
        self.ready = True
        return self.ready

    def predict(self, payload, headers=None):
        return get_predict_response(
            payload, self.model.predict(get_predict_input(payload)), self.name
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", required=True)
    args, _ = parser.parse_known_args()
    iris = Iris(args.model_name, args.model_dir)
    iris.load()
    ModelServer().start([iris])
