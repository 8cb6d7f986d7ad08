# Two images: `docker build --target train .` and `docker build --target api .`; see docs/images.md.
# Packages come before code, so that a change of code builds in seconds.
FROM python:3.11-slim AS base
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 nej && install --directory --owner nej --group nej /nej
WORKDIR /nej


FROM base AS train-packages
ARG TORCH_INDEX=""
COPY requirements.txt ./
RUN python -m venv /opt/venv && \
    pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements.txt


# the starter needs a network to be built, and then none to be used
FROM train-packages AS starter
COPY nej/__init__.py nej/files.py nej/model.py nej/
COPY scripts/_run.py scripts/make_starter.py scripts/
RUN python scripts/make_starter.py && chmod --recursive a+rX models


FROM base AS train
COPY --from=train-packages /opt/venv /opt/venv
COPY --from=starter --chown=nej:nej /nej/models models
COPY --chown=nej:nej . .
USER 1000:1000
# no git in here: DVC does without, and the manifest takes the commit from COMMIT
ARG COMMIT=""
ENV GIT_PYTHON_REFRESH=quiet \
    NEJ_COMMIT=$COMMIT
RUN printf '[core]\n    no_scm = true\n' > .dvc/config.local
LABEL org.opencontainers.image.title="nej train" \
      org.opencontainers.image.description="Trains and judges classifiers of arXiv papers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision=$COMMIT
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
ENTRYPOINT ["invoke"]
CMD ["--list"]


FROM base AS api-packages
ARG TORCH_INDEX=""
COPY requirements_api.txt ./
RUN python -m venv /opt/venv && \
    pip install --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --requirement requirements_api.txt
# a fourth of it only serves to build, test and install packages, or command lines, downloads, other
# devices and formats than the CPU's and ONNX's
WORKDIR /opt/venv/lib/python3.11/site-packages
RUN pip uninstall --quiet --yes hf-xet markdown-it-py mdurl networkx pygments rich setuptools \
        shellingham typer && \
    find torch/bin -type f ! -name torch_shm_manager -delete && \
    rm -rf torch/include torch/test torch/lib/*test* pip pip-* \
        pyarrow/include pyarrow/includes pyarrow/src pyarrow/*.p[yx][xid] \
        pyarrow/*flight* pyarrow/*_s3* \
        openvino/include openvino/libs/cache.json openvino/libs/*intel_[gn]pu* \
        openvino/libs/*tensorflow* openvino/libs/*pytorch* openvino/libs/*paddle* \
        openvino/libs/*jax* openvino/libs/*gguf* && \
    for name in pyarrow/libarrow_python*.so.*.*.*; do \
        ln --force --symbolic "$(basename "$name")" "${name%.*.*}"; done && \
    find . -type f \( -name '*.a' -o -name '*.pyi' \) -delete && \
    find . -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +


FROM base AS api
COPY --from=api-packages /opt/venv /opt/venv
COPY nej nej
COPY scripts/_run.py scripts/serve.py scripts/
USER 1000:1000
ARG COMMIT=""
ENV HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="nej api" \
      org.opencontainers.image.description="Sorts arXiv papers by a model of nej, over HTTP" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision=$COMMIT
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "scripts/serve.py"]
CMD ["/models/production", "--host", "0.0.0.0"]
