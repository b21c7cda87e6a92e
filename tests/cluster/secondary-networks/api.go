package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"sigs.k8s.io/yaml"
)

// Multus waits no longer for an API server that is busy or starts, either.
const (
	patience = 2500 * time.Millisecond
	interval = 250 * time.Millisecond
)

// api asks the API server. Two reads and a patch need no client library.
type api struct {
	server string
	token  string
	client *http.Client
}

// openAPI reads a kubeconfig with one cluster and one user who has a token.
func openAPI(file string) (*api, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	var kubeconfig struct {
		Clusters []struct {
			Cluster struct {
				Server    string `json:"server"`
				Authority []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Token string `json:"token"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(text, &kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	if len(kubeconfig.Clusters) != 1 || len(kubeconfig.Users) != 1 {
		return nil, fmt.Errorf("kubeconfig %s: want one cluster and one user", file)
	}
	cluster := kubeconfig.Clusters[0].Cluster
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(cluster.Authority) {
		return nil, fmt.Errorf("kubeconfig %s: no certificate authority", file)
	}
	return &api{
		server: cluster.Server,
		token:  kubeconfig.Users[0].User.Token,
		client: &http.Client{
			Timeout:   10 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities}},
		},
	}, nil
}

// selection is the pod's annotation, "" where it has none.
func (a *api) selection(ctx context.Context, p *pod) (string, error) {
	var object struct {
		Metadata struct {
			UID         string            `json:"uid"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := a.do(ctx, http.MethodGet, podPath(p), nil, &object); err != nil {
		return "", fmt.Errorf("the pod: %w", err)
	}
	annotations := object.Metadata.Annotations
	// The kubelet knows a static pod by another number than the API server.
	source := annotations["kubernetes.io/config.source"]
	static := source != "" && source != "api"
	if p.uid != "" && object.Metadata.UID != p.uid && !static {
		return "", fmt.Errorf("the pod: its uid is %s, not %s", object.Metadata.UID, p.uid)
	}
	return annotations[selectionAnnotation], nil
}

// definition is the configuration in a NetworkAttachmentDefinition.
func (a *api) definition(ctx context.Context, namespace, name string) (string, error) {
	var object struct {
		Spec struct {
			Config string `json:"config"`
		} `json:"spec"`
	}
	path := "/apis/k8s.cni.cncf.io/v1/namespaces/" + namespace + "/network-attachment-definitions/" + name
	err := a.do(ctx, http.MethodGet, path, nil, &object)
	return object.Spec.Config, err
}

// setStatus writes through the status subresource, where Multus does.
func (a *api) setStatus(ctx context.Context, p *pod, statuses []networkStatus) error {
	annotation, err := annotate(statuses)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{statusAnnotation: annotation}},
	})
	if err != nil {
		return err
	}
	if err := a.do(ctx, http.MethodPatch, podPath(p)+"/status", patch, nil); err != nil {
		return fmt.Errorf("annotation %s: %w", statusAnnotation, err)
	}
	return nil
}

func podPath(p *pod) string {
	return "/api/v1/namespaces/" + p.namespace + "/pods/" + p.name
}

// errBusy is a failure that may be over the next time.
var errBusy = errors.New("the API server does not answer")

func (a *api) do(ctx context.Context, method, path string, body []byte, answer any) error {
	deadline := time.Now().Add(patience)
	for {
		err := a.once(ctx, method, path, body, answer)
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(interval)
	}
}

func (a *api) once(ctx context.Context, method, path string, body []byte, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	request.Header.Set("User-Agent", "secondary-networks")
	if body != nil {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := a.client.Do(request)
	if err != nil {
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errBusy, err)
	case response.StatusCode >= 500:
		return fmt.Errorf("%w: %s", errBusy, response.Status)
	case response.StatusCode >= 300:
		return errors.New(reason(response.Status, text))
	case answer == nil:
		return nil
	}
	return json.Unmarshal(text, answer)
}

// reason is what the API server says itself, if it does.
func reason(status string, text []byte) string {
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &said) == nil && said.Message != "" {
		return said.Message
	}
	return status
}
