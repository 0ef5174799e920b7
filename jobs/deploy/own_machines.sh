#!/usr/bin/env bash
# A Ray cluster of your own machines: one line on each. It stays in the foreground; Ctrl-C takes the machine out.
#
#   bash jobs/deploy/own_machines.sh head   THIS-IP [options of ray start]
#   bash jobs/deploy/own_machines.sh worker THIS-IP HEAD-IP:6379 [options of ray start]
#
# Before, on every machine: Python 3.11 and the dependencies (as Containerfile has them), the same everywhere, and one
# token: `ray get-auth-token --generate` on one, its ~/.ray/auth_token copied to the others and made chmod 600.
#
# THIS-IP is the address by which the others reach this machine. Between the machines every TCP port must be open, and
# from outside none: whoever reaches one runs code as you. From elsewhere come through SSH:
#  ssh -L 8265:127.0.0.1:8265 HEAD
#  RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/active_round.py ...
# The storage_path and the images must be the same for all: s3://..., or a folder that all mount at the same place.
#
# A head that should only coordinate: --num-cpus 0 --num-gpus 0.
set -euo pipefail

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }
role=${1:-}
ip=${2:-}
[[ $ip =~ ^[0-9.]+$ && $ip != 0.* ]] || usage
shift 2

export RAY_AUTH_MODE=token
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [[ -z ${RAY_AUTH_TOKEN:-} ]]; then
  [[ -s $token ]] || { echo "no token in $token: ray get-auth-token --generate, or copy it from the head" >&2; exit 1; }
  chmod 600 "$token"
fi

# A machine that vanishes counts as dead after 3 x (3 + 5) s instead of 64 s, and a call to it fails after 20 s instead
# of 7 min. In every process, the driver's too (a submitted job has them from the head).
export RAY_health_check_initial_delay_ms=5000
export RAY_health_check_period_ms=3000
export RAY_health_check_timeout_ms=5000
export RAY_health_check_failure_threshold=3
export RAY_grpc_client_keepalive_time_ms=10000
export RAY_grpc_client_keepalive_timeout_ms=10000

# Training workers meet at the address of the machine's name, which on Debian is 127.0.1.1: two machines never would.
interface=$(ip -oneline -4 address 2> /dev/null | awk -v ip="$ip" 'index($4, ip "/") == 1 {print $2; exit}' || true)
if [[ -n $interface ]]; then
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
fi

ulimit -n 65536 2> /dev/null || echo "only $(ulimit -n) open files: many workers may need more (ulimit -n)" >&2
case $role in
  head)
    exec ray start --head --block --node-ip-address="$ip" --port=6379 --dashboard-host=127.0.0.1 "$@"
    ;;
  worker)
    [[ ${1:-} == *:* ]] || usage
    head=$1
    shift
    exec ray start --block --address="$head" --node-ip-address="$ip" "$@"
    ;;
  *) usage ;;
esac
