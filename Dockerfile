# Serves an exported model by HTTP as an ordinary user; the image has no torch. The tests do not build it.
#
#     docker build --tag resnest-seg .
#     docker build --tag resnest-seg --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 \
#         --build-arg RUNTIME=onnxruntime-gpu .
#     docker run --rm --publish 8000:8000 --volume "$PWD/model.onnx:/models/model.onnx:ro" resnest-seg   # CUDA: --gpus all
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG RUNTIME=onnxruntime

# hadolint ignore=DL3008  # Ubuntu keeps the newest version only
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home serve

ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/resnest_seg
COPY constraints.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt \
        numpy opencv-python-headless starlette uvicorn "${RUNTIME}"
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY resnest_seg resnest_seg
RUN pip install --no-cache-dir --no-deps .

USER 10001
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["resnest-seg", "serve", "--host", "0.0.0.0"]
CMD ["--checkpoint", "/models/model.onnx"]
