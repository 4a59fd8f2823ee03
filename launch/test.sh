#!/usr/bin/env bash
# Sets up, then runs the tests:
#
#   bash launch/test.sh [PYTEST ARGUMENT...]
#
# launch/setup_env.sh says which environment is used.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env test
say "running the tests with $PYTHON"
cd "$REPO"
exec "$PYTHON" -m pytest -q "$@"
