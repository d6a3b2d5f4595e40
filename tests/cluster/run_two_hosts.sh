#!/bin/bash
# Two hosts on one machine: network namespaces with an sshd each, and a `deepspeed --hostfile` command over them.
#   tests/cluster/run_two_hosts.sh WORK SCRIPT [ARGUMENT...]
# WORK is an existing folder for the hostfile, .deepspeed_env and logs, and the working directory of the command. Needs
# root and the Debian packages openssh-server, pdsh and iproute2. Leaves with the command's exit code, and in any
# case removes the namespaces, the bridge and every process in them. ~/.ssh, /etc/hosts and ~/.deepspeed_env stay as
# they are.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
BIN=${BIN:-$ROOT/.venv/bin}
WORK=$(cd "$1" && pwd)
shift
SSH=$WORK/ssh
# Names and a network of this process, so that two of these may run at once; 198.18.0.0/15 is set aside for tests
# (RFC 2544). An interface's name has 15 letters at most.
ID=$(($$ % 100000))
NET=198.18.$(($$ % 250))
BRIDGE=scb$ID

cleanup() {
    set +e
    trap - EXIT INT TERM HUP
    # Not TERM: the launcher's handler then ends by name all that looks like it, and process names are not part of a
    # network namespace.
    [ -n "${LAUNCHER:-}" ] && kill -KILL -- "-$LAUNCHER" 2>/dev/null
    for host in 1 2; do
        local pids
        pids=$(ip netns pids "sc$ID-h$host" 2>/dev/null)
        # shellcheck disable=SC2086
        [ -n "$pids" ] && kill -KILL $pids 2>/dev/null
        # Both ends of the pair go with it at once; with the namespace they would go some time later.
        ip link delete "sc${ID}v$host" 2>/dev/null
        ip netns delete "sc$ID-h$host" 2>/dev/null
    done
    ip link delete "$BRIDGE" 2>/dev/null
    rm -rf "$SSH"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -m 700 "$SSH"
ssh-keygen -q -t ed25519 -N "" -f "$SSH/key"
ssh-keygen -q -t ed25519 -N "" -f "$SSH/host"
cp "$SSH/key.pub" "$SSH/authorized"
# The folder that sshd gives up its rights in.
mkdir -p /run/sshd

ip link add "$BRIDGE" type bridge
ip address add "$NET.254/24" dev "$BRIDGE"
ip link set "$BRIDGE" up
for host in 1 2; do
    space=sc$ID-h$host
    ip netns add "$space"
    # One interface name on all hosts, since gloo takes one.
    ip link add "sc${ID}v$host" type veth peer name eth0 netns "$space"
    ip link set "sc${ID}v$host" master "$BRIDGE" up
    ip -n "$space" address add "$NET.$host/24" dev eth0
    ip -n "$space" link set eth0 up
    ip -n "$space" link set lo up
    # StrictModes: WORK may lie below a folder that others can write, such as /tmp.
    ip netns exec "$space" "$(command -v sshd)" -f /dev/null -h "$SSH/host" -o "ListenAddress=$NET.$host" \
        -o "AuthorizedKeysFile=$SSH/authorized" -o PidFile=none -o StrictModes=no -o PermitRootLogin=yes \
        -o PasswordAuthentication=no -E "$WORK/sshd$host.log"
done

printf '%s slots=1\n' "$NET.1" "$NET.2" >"$WORK/hostfile"
# Without GLOO_SOCKET_IFNAME gloo takes the machine's name for 127.0.0.1 and waits for five minutes.
cat >"$WORK/.deepspeed_env" <<ENV
DS_ACCELERATOR=cpu
GLOO_SOCKET_IFNAME=eth0
OMP_NUM_THREADS=1
HF_HUB_OFFLINE=1
PATH=$BIN:$PATH
ENV

cd "$WORK"
export DS_ACCELERATOR=cpu PDSH_RCMD_TYPE=ssh
export PDSH_SSH_ARGS_APPEND="-i $SSH/key -F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
# In the background, so that a signal to this script is handled at once, and in a session of its own, so that no signal
# of the terminal reaches the launcher.
setsid "$BIN/deepspeed" --hostfile "$WORK/hostfile" --no_ssh_check --master_addr "$NET.1" "$@" &
LAUNCHER=$!
code=0
wait "$LAUNCHER" || code=$?
LAUNCHER=
exit "$code"
