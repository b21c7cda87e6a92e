# shellcheck shell=bash
# The servers of the three rule sets, and a pod that has nothing to do with them.

# server NAMESPACE NAME NODE PORTS: a Deployment of one pod that answers with its name.
server() {
	local namespace=$1 name=$2 node=$3 ports=$4
	cat <<-YAML
		---
		apiVersion: apps/v1
		kind: Deployment
		metadata: {name: $name, namespace: $namespace}
		spec:
		  selector: {matchLabels: {tier: $name}}
		  strategy: {type: Recreate}
		  template:
		    metadata: {labels: {tier: $name}}
		    spec:
		      nodeSelector: {kubernetes.io/hostname: $node}
		      terminationGracePeriodSeconds: 1
		      automountServiceAccountToken: false
		      containers:
		        - name: server
		          image: ringfence.test/toolbox:1
		          imagePullPolicy: IfNotPresent
		          command: [/bin/probe, serve, --name, $name, --tcp, "$ports"]
		          # From the kubelet: a node always reaches its own pods, whatever the groups say.
		          readinessProbe: {tcpSocket: {port: 22}, periodSeconds: 1}
	YAML
}

# Both nodes get some, so that every rule is seen on one node and across nodes.
servers() {
	cat <<-'YAML'
		apiVersion: v1
		kind: Namespace
		metadata: {name: shop}
		---
		apiVersion: v1
		kind: Namespace
		metadata: {name: elsewhere}
		---
		apiVersion: v1
		kind: Service
		metadata: {name: db, namespace: shop}
		spec:
		  selector: {tier: db}
		  ipFamilyPolicy: RequireDualStack
		  ports: [{port: 3306}]
	YAML
	server shop web n1 80,443,22
	server shop app n1 22
	server shop db n2 3306,22
	server shop bastion n2 22
	server elsewhere stranger n1 80,22
}
