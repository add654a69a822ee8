// Package prometheus holds what an operator of gateways gives to Prometheus and
// Grafana: alert rules and a dashboard on the metrics of dpsd. Its tests have
// promtool read them.
package prometheus
