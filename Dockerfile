# The image of every perdure service: the command says which one runs.
FROM python:3.11-slim

WORKDIR /opt/perdure
COPY requirements-cluster.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements-cluster.lock
COPY pyproject.toml README.md LICENSE ./
COPY services services
RUN pip install --no-cache-dir --no-deps .

# A new volume takes the owner of the folder it covers.
RUN useradd --system perdure && install --directory --owner=perdure /var/lib/perdure
USER perdure
VOLUME /var/lib/perdure
EXPOSE 8787 8900
CMD ["perdure", "serve", "all"]
