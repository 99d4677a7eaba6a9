#!/bin/sh
# Launch agent for tests: runs a command "on" a host that is a network namespace of that name.
# Called as ssh is: namespace_agent.sh [-options] HOST COMMAND...
while [ $# -gt 0 ]; do
    case $1 in
        -*) shift ;;
        *) break ;;
    esac
done
host=$1
shift
# A host whose link is down is not reached, as with ssh.
ip -n "$host" link show eth0 | grep -q LOWER_UP || exit 255
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$1"; shift; exec sh -c "$*"' sh "$host" "$@"
