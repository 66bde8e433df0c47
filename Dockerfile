# TrustCXR on the CPU: the web page by default. Research software, not for diagnosis.
#   docker build -t trustcxr .
#   docker run --rm -p 127.0.0.1:8000:8000 trustcxr
#   docker run --rm -v "$PWD:/data" trustcxr predict covid-robust /data/chest.png --out /data/trustcxr-out
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 trustcxr
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE ./
COPY src ./src
# The CPU build of torch: the usual one brings CUDA packages of several gigabytes.
RUN pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=2.6' 'torchvision>=0.21' \
    && pip install --constraint constraints.txt '.[serve,dicom,onnx]'

USER 1000
WORKDIR /home/trustcxr
# Another machine reaches the page with the token that the server prints; see `trustcxr serve --help`.
EXPOSE 8000
ENTRYPOINT ["trustcxr"]
CMD ["serve", "covid-robust", "--host", "0.0.0.0", "--port", "8000"]
