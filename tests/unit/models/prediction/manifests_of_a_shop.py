"""A small change as people write it: a new worker, a policy for the cart, configuration in several places."""

CHANGE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: checkout, namespace: shop}
spec:
  selector: {matchLabels: {app: checkout}}
  template:
    metadata: {labels: {app: checkout}}
    spec:
      containers:
        - name: server
          env:
            - {name: CART_ADDR, value: "cart:7070"}
            - {name: PAYMENT_URL, value: "http://payment.shop.svc.cluster.local:50051/charge"}
            - {name: LOG_LEVEL, value: debug}
            - {name: STARTED, value: "12:30"}
            - name: FRAUD
              valueFrom: {configMapKeyRef: {name: endpoints, key: fraud}}
          args: ["--currency=currency:7000", "--verbose"]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  template:
    metadata: {labels: {app: cart, tier: backend}}
    spec: {containers: [{name: server, env: [{name: REDIS, value: "redis://redis-cart"}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: grpc, port: 7070, targetPort: 8080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: endpoints, namespace: shop}
data: {fraud: "https://api.fraud.example/v2"}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart-only-from-checkout, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: checkout}}}]
      ports: [{protocol: TCP, port: 8080}]
"""
