import com.microsoft.azure.sdk.iot.device.DeviceClient;
import com.microsoft.azure.sdk.iot.device.IotHubClientProtocol;
import com.microsoft.azure.sdk.iot.device.Message;
import com.microsoft.azure.sdk.iot.provisioning.device.ProvisioningDeviceClient;
import com.microsoft.azure.sdk.iot.provisioning.device.ProvisioningDeviceClientStatus;
import com.microsoft.azure.sdk.iot.provisioning.device.ProvisioningDeviceClientTransportProtocol;
import com.microsoft.azure.sdk.iot.provisioning.security.SecurityProvider;
import com.microsoft.azure.sdk.iot.provisioning.security.SecurityProviderSymmetricKey;
import com.microsoft.azure.sdk.iot.provisioning.security.hsm.SecurityProviderX509Cert;
import java.io.FileInputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;
import java.util.List;
import java.util.Map;

/**
 * Does what Microsoft's samples do, with the service's own ports: registers a device with the SDK
 * for Java, connects it to its hub, and sends telemetry. Arguments: mqtt|websocket|https key|x509.
 */
public class Device {
    public static void main(String[] arguments) {
        try {
            run(arguments[0], arguments[1]);
            System.exit(0);
        } catch (Throwable e) {
            for (Throwable t = e; t != null; t = t.getCause()) {
                System.err.println(t);
            }
            System.exit(1);
        }
    }

    private static void run(String transport, String credential) throws Exception {
        Map<String, String> env = System.getenv();
        SecurityProvider security = credential.equals("key")
            ? new SecurityProviderSymmetricKey(env.get("PROVISIONING_SYMMETRIC_KEY").getBytes(StandardCharsets.UTF_8), env.get("PROVISIONING_REGISTRATION_ID"))
            : new SecurityProviderX509Cert(certificate(env.get("CERTIFICATE_FILE")), privateKey(env.get("KEY_FILE")), List.of());
        var protocol = Map.of(
            "mqtt", ProvisioningDeviceClientTransportProtocol.MQTT,
            "websocket", ProvisioningDeviceClientTransportProtocol.MQTT_WS,
            "https", ProvisioningDeviceClientTransportProtocol.HTTPS).get(transport);
        var service = ProvisioningDeviceClient.create(env.get("PROVISIONING_HOST"), env.get("PROVISIONING_IDSCOPE"), protocol, security);
        var result = service.registerDeviceSync(60_000);
        service.close();
        if (result.getProvisioningDeviceClientStatus() != ProvisioningDeviceClientStatus.PROVISIONING_DEVICE_STATUS_ASSIGNED) {
            throw new Exception(result.getProvisioningDeviceClientStatus().toString());
        }
        System.out.println("assigned " + result.getIothubUri() + " " + result.getDeviceId());
        var hub = new DeviceClient(result.getIothubUri(), result.getDeviceId(), security,
            transport.equals("websocket") ? IotHubClientProtocol.MQTT_WS : IotHubClientProtocol.MQTT);
        hub.open(false);
        hub.sendEvent(new Message("hello"));
        System.out.println("telemetry sent");
        hub.close();
    }

    private static X509Certificate certificate(String file) throws Exception {
        try (var in = new FileInputStream(file)) {
            return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
    }

    private static PrivateKey privateKey(String file) throws Exception {
        String text = Files.readString(Path.of(file)).replaceAll("-----[A-Z ]+-----|\\s", "");
        return KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(text)));
    }
}
