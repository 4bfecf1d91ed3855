#!/bin/sh
# Makes what the members of a small farm know each other by, in a folder: an authority, a
# certificate for the coordinator, one for workers and users, and a token for each role.
#
#     deploy/certs.sh FOLDER [NAME...]
#
# NAMEs are further host names and addresses under which the coordinator is reached. Everything but
# the authority's key can be read by whoever can enter the folder, since containers run as another
# user; keep the folder where only operators are. Nothing that exists is replaced.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [NAME...]" >&2
    exit 2
fi
folder=$1
shift
if [ -e "$folder/ca.pem" ]; then
    echo "$folder/ca.pem exists: remove the folder for a new authority" >&2
    exit 1
fi

names="DNS:coordinator,DNS:localhost,IP:127.0.0.1"
names="$names,DNS:longtake-coordinator,DNS:longtake-coordinator.longtake.svc"
for name in "$@"; do
    case $name in
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done

mkdir -p "$folder"
cd "$folder"
umask 077
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# $key is several words on purpose.
openssl req -x509 $key -days 3650 -subj "/CN=longtake farm" -keyout ca.key -out ca.pem

certify() { # FILE SUBJECT NAMES PURPOSE
    openssl req $key -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
    printf 'basicConstraints=CA:FALSE\nsubjectAltName=%s\nextendedKeyUsage=%s\n' "$3" "$4" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
        -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}
certify server coordinator "$names" serverAuth
certify client longtake-client DNS:longtake-client clientAuth

for role in worker user viewer; do
    token=$(openssl rand -hex 32)
    echo "$role $token" >> tokens
    printf '%s' "$token" > "$role.token"
done
chmod a+r ca.pem server.* client.* tokens ./*.token
chmod a+rx .
