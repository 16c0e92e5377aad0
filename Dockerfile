# The maintained stack, for CPU. For a GPU, base it on nvidia/cuda:12.8.1-devel-ubuntu22.04 with python3, python3-dev
# and python3-venv installed, and build where the GPU is seen, or mmcv comes without its CUDA operators.
#   docker build -t mmsgformer .
#   docker run --rm -it --shm-size 2g -v /path/to/data:/data mmsgformer
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /mmsgformer
COPY . .
RUN make setup
ENV PATH=/mmsgformer/.venv/bin:$PATH
CMD ["bash"]
