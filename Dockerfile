# One image recipe for every stage and for `reel`.
#
#   docker build --build-arg EXTRAS=torch -t reelstream-torch .                        prompt, sampler, decoder
#   docker build --build-arg EXTRAS=torch --build-arg COMPUTE=cuda -t reelstream-cuda .  the same on a GPU
#   docker build --build-arg EXTRAS=video -t reelstream-video .                        finisher
#   docker build --build-arg EXTRAS=cli -t reelstream-cli .                            reel
#   docker run reelstream-torch sampler
#
# torch's default wheel brings CUDA's libraries along, so cpu and cuda need no base images of their
# own: COMPUTE decides the device. TORCH_INDEX, an index of CPU-only builds, saves 4.5 GB under cpu.
ARG PYTHON=3.11
ARG COMPUTE=cpu

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=torch
ARG TORCH_INDEX=
WORKDIR /src
# The packages change seldom, the code often: two layers. Every package is checked against the lock.
COPY pyproject.toml README.md LICENSE ./
COPY .ci/ .ci/
RUN .ci/install /opt/venv packages ${EXTRAS}
COPY schemas/ schemas/
COPY streams/ streams/
COPY workers/ workers/
RUN .ci/install /opt/venv project

FROM python:${PYTHON}-slim AS runtime
RUN useradd --create-home --uid 10001 --user-group reel
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REEL_METRICS_HOST=0.0.0.0 \
    REEL_METRICS_PORT=9464
USER reel
WORKDIR /home/reel
EXPOSE 9464
# The loop turns. Loading a large model takes its time before the first answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "workers.main"]

FROM runtime AS runtime-cpu
ENV REEL_DEVICE=cpu

FROM runtime AS runtime-cuda
ENV REEL_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime-${COMPUTE}
