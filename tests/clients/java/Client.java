// Speaks with the JDK's HTTP client as its users call it: HTTP/2 by default, so plain http gets `Upgrade: h2c`.
// java Client.java URL BODY default|streamed|http1.1: prints the status, and the size and the first bytes of the answer.

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HexFormat;

public class Client {
    public static void main(String[] arguments) throws Exception {
        byte[] body = arguments[1].getBytes(StandardCharsets.UTF_8);
        String way = arguments[2];
        HttpClient.Builder builder = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10));
        if (way.equals("http1.1")) {
            builder.version(HttpClient.Version.HTTP_1_1);
        }
        HttpClient client = builder.build();
        HttpRequest.BodyPublisher publisher = way.equals("streamed")
            ? HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
            : HttpRequest.BodyPublishers.ofByteArray(body);
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .timeout(Duration.ofSeconds(60))
            .header("Content-Type", "application/json")
            .POST(publisher)
            .build();
        for (int call = 0; call < 2; call++) { // the second call uses the same connection
            HttpResponse<InputStream> answer = client.send(request, HttpResponse.BodyHandlers.ofInputStream());
            byte[] got;
            try (InputStream stream = answer.body()) {
                got = stream.readAllBytes();
            }
            String first = HexFormat.of().formatHex(got, 0, Math.min(4, got.length));
            System.out.println(answer.statusCode() + " " + got.length + " " + first + " " + answer.version());
        }
    }
}
