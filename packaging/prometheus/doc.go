// Package prometheus contains alert rules for Prometheus and a dashboard for Grafana that use the
// metrics of dpsd. Its tests check them with promtool.
package prometheus
